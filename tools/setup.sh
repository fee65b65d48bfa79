#!/bin/sh
# Install groups of requirements.lock into .venv, as the lock has them: no resolver, every file checked by its hash.
#
#     sh tools/setup.sh core study        make .venv anew, with these groups
#     sh tools/setup.sh --add test        add a group to it
#
# UV=no installs with pip where uv is on the PATH; WITH_PIP=22.3 takes that pip, not that of the Python (own), or the newest.
set -u
log=.venv/setup.log

stop() {
	echo "$*" >&2
	exit 1
}

if [ "$1" = --add ]; then
	shift
else
	case "`uname -sm`" in
	"Linux x86_64" | "Darwin arm64") ;;
	*) stop "PyTorch and its companions have no wheels for `uname -sm`: atr needs Linux on x86-64, or macOS on Apple silicon." ;;
	esac
	python=
	for one in python3 python3.14 python3.13 python3.12 python3.11; do
		if $one -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
			python=$one
			break
		fi
	done
	[ "$python" ] || stop "atr needs Python 3.11 to 3.14, found is `python3 -V 2>/dev/null || echo none`:" \
		"install one (python.org, Homebrew, apt, pyenv, conda), so that python3.13, say, is on the PATH."
	$python -c 'import ensurepip, venv' 2>/dev/null || stop "`$python -V` (`command -v $python`) has no venv module:" \
		"install it (apt install `$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'`)," \
		"or another Python."
	size="3 GB to download, 6 GB of disk" needed=7
	[ "`uname -s`" = Linux ] || size="1 GB to download, 2 GB of disk" needed=3
	free=`df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}'`
	[ "$free" -ge $needed ] || stop "`pwd` has $free GB free, and .venv needs $needed: free some, or clone to another disk."
	echo "Setting up .venv with `$python -V`, once: $size. Interrupted, it takes from the cache what it had downloaded."
	$python -m venv --clear .venv || stop "`$python -V` could not make .venv, for the reason above."
	case "${WITH_PIP:-}" in
	"" | own) ;;
	newest) .venv/bin/python -m pip install --quiet --upgrade pip || exit 1 ;;
	*) .venv/bin/python -m pip install --quiet "pip==$WITH_PIP" || exit 1 ;;
	esac
fi

# One line that tells how far it is, on a terminal; all that is said goes to the log.
progress() {
	awk -v log_file=$log -v group="$1" -v tty="$2" '
		{ print >>log_file }
		/^ *(Downloading|Using cached) / && !/\.metadata/ {
			name = $2 == "cached" ? $3 : $2
			sub(/-[0-9].*/, "", name)
			line = "  " group ": " ++packages " packages, " name " " substr($0, index($0, "("))
		}
		/^(Installing collected|Prepared) / { line = "  " group ": " packages " packages, installing" }
		tty { printf "\r%-78.78s", line; fflush() }
		END { if (tty) printf "\r%78s\r", "" }'
}

export PIP_USER=0 PIP_USE_PEP517=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
unset PYTHONHOME
if [ "${UV:-}" != no ] && command -v uv >/dev/null; then
	set_up="uv pip install --python .venv/bin/python"
else
	set_up=".venv/bin/python -m pip install --no-compile" # Python compiles what it imports
fi
if [ -t 1 ]; then tty=1; else tty=0; fi
: >$log
started=`date +%s`
for group in "$@"; do
	awk -v group="$group" '/^# group /{on = $3 == group} on' requirements.lock >.venv/$group.txt
	# What has no wheel is built by the setuptools of the group before it, which the lock pins.
	{ $set_up --no-deps --require-hashes --no-build-isolation -r .venv/$group.txt 2>&1 || echo "set-up failed"; } |
		progress "$group" $tty
	if [ "`tail -n 1 $log`" = "set-up failed" ]; then
		if grep -qiE 'No space left|disk quota' $log; then
			stop "No space left: free 7 GB, or clone to another disk, and run the same command again."
		elif grep -qiE 'NewConnectionError|ConnectTimeout|name resolution|dns error|ProxyError|error sending request|Network is unreachable|Connection (refused|reset|aborted)|Read timed out|ConnectionError|from versions: none' $log; then
			stop "The package index does not answer: look at the network or its proxy, and run the same command again (what it said: $log)."
		fi
		tail -n 12 $log >&2
		stop "The set-up stopped in group $group, for the reason above (all of it: $log)."
	fi
done
$set_up --no-deps --no-build-isolation --editable . >>$log 2>&1 || { tail -n 12 $log >&2; stop "atr itself could not be installed."; }
mkdir -p .venv/home
echo "  $*: installed in $((`date +%s` - started)) s"
