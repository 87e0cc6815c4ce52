# The program for GPUs. Built by launch/image.sh from a commit:
#   launch/image.sh --kind=gpu --image=NAME
FROM python:3.13-slim-bookworm

RUN useradd --create-home --uid 1000 qrpo
WORKDIR /home/qrpo/qrpo-jax

# The requirements first: a layer that changes with the lock file alone.
COPY launch/locks launch/locks
RUN pip install --no-cache-dir --require-hashes --requirement launch/locks/gpu.txt

COPY . .
USER 1000
# The libraries of CUDA are in the requirements; the driver is that of the machine.
ENV PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["python", "-m", "qrpo_jax.main"]
