# gpumlp on the CPU.
#   docker build -f docker/cpu.Dockerfile -t gpumlp:cpu .
#   docker run --rm -v gpumlp-cache:/cache -v gpumlp-runs:/app/runs gpumlp:cpu --epochs 5
FROM python:3.12.12-slim-bookworm

# MNIST is kept in /cache/gpumlp.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    XDG_CACHE_HOME=/cache

# Dependencies have a layer of their own: a change of gpumlp does not install them again.
RUN pip install --no-cache-dir \
    numpy==2.4.6 \
    platformdirs==4.14.8 \
    requests==2.34.2 \
    rich==15.0.0 \
    safetensors==0.8.0 \
    threadpoolctl==3.8.0 \
    tyro==1.0.17

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gpumlp gpumlp
RUN pip install --no-cache-dir --no-deps .

# Every user may write to the volumes, so that --user works with any number.
RUN useradd --create-home --uid 1000 gpumlp \
    && install --directory --mode=1777 /cache /app/runs
USER 1000
WORKDIR /app
VOLUME ["/cache", "/app/runs"]

# "docker stop" acts like Ctrl-C: the run is saved after its last finished epoch, and can be resumed.
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "gpumlp.train"]
