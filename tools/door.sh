#!/bin/sh
# The README's first command as a newcomer meets it: the committed HEAD in a fresh clone, an empty home, an environment
# made by each pip that is named ("own" is that of the Python), and by uv where it is on the PATH.
set -u
top=`git rev-parse --show-toplevel` || exit 1
work=`mktemp -d` && trap 'rm -rf "$work"' EXIT
failed=0
for pip in "$@" `command -v uv >/dev/null && echo uv`; do
	rm -rf "$work"/*
	mkdir "$work/home"
	git clone --quiet "$top" "$work/atr" || exit 1
	case $pip in
	uv) with= ;;
	*) with="UV=no WITH_PIP=$pip" ;;
	esac
	started=`date +%s`
	if env HOME="$work/home" $with make -C "$work/atr" study PROFILE=smoke NN=01 >"$work/log" 2>&1; then
		echo "$pip: passed in $((`date +%s` - started)) s"
	else
		failed=1
		tail -n 20 "$work/log"
		echo "$pip: FAILED after $((`date +%s` - started)) s"
	fi
done
exit $failed
