# For a GPU; the driver and its container toolkit are the machine's:
#     docker build -t audio-text-retrieval .
#     docker run --rm --gpus all -v atr:/data audio-text-retrieval study 01 --profile demo
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /atr
COPY . .
RUN make .venv/.study && rm -rf /root/.cache
ENV PATH=/atr/.venv/bin:$PATH ATR_HOME=/data ATR_RESULTS=/data/results
VOLUME /data
ENTRYPOINT ["atr"]
CMD ["--help"]
