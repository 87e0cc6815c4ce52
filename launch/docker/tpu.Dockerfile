# The program for TPUs. Built by launch/image.sh from a commit:
#   launch/image.sh --kind=tpu --image=NAME
FROM python:3.13-slim-bookworm

RUN useradd --create-home --uid 1000 qrpo
WORKDIR /home/qrpo/qrpo-jax

# The requirements first: a layer that changes with the lock file alone.
COPY launch/locks launch/locks
RUN pip install --no-cache-dir --require-hashes --requirement launch/locks/tpu.txt

COPY . .
USER 1000
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m", "qrpo_jax.main"]
