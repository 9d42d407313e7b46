# gpumlp on NVIDIA GPUs. The host needs NVIDIA's driver and container toolkit, but no CUDA toolkit.
#   docker build -f docker/cuda.Dockerfile -t gpumlp:cuda .
#   docker run --rm --gpus all -v gpumlp-cache:/cache -v gpumlp-runs:/app/runs gpumlp:cuda --epochs 5
# With a driver older than 580, build with: --build-arg CUPY=cupy-cuda12x
FROM python:3.12.12-slim-bookworm

# The driver's libraries come from the host when a container starts; "utility" brings nvidia-smi.
# MNIST is kept in /cache/gpumlp, compiled kernels in /cache/cupy.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    XDG_CACHE_HOME=/cache \
    CUPY_CACHE_DIR=/cache/cupy

# Dependencies have a layer of their own: a change of gpumlp does not install them again.
# CuPy's extra "ctk" brings the CUDA libraries and the run-time compiler, so no CUDA base image is needed.
# nvmath-python brings fused matrix products and CUDA graphs.
ARG CUPY=cupy-cuda13x
RUN pip install --no-cache-dir \
    numpy==2.4.6 \
    platformdirs==4.14.8 \
    requests==2.34.2 \
    rich==15.0.0 \
    safetensors==0.8.0 \
    threadpoolctl==3.8.0 \
    tyro==1.0.17 \
    "${CUPY}[ctk]==14.2.0" \
    nvmath-python==1.0.0

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
