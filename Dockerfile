# The tree with CUDA builds of torch, for a box with NVIDIA GPUs and for KubeRay; docs/machines/gpu_box.md has the commands.
#   docker build -t altgrad .
#   docker run --rm --init --gpus all --shm-size 16g -v altgrad-results:/results altgrad sweep --results /results
FROM python:3.12-slim

# A C++ compiler for torch.compile, ps for Ray, and wget, with which KubeRay asks whether a node is well.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 altgrad \
    && install --directory --owner altgrad /altgrad /results

WORKDIR /altgrad
COPY --chown=altgrad . .
# PyPI's wheels of torch for Linux contain CUDA; the host brings only its driver.
RUN python -m pip install --no-cache-dir --constraint constraints.txt --editable ".[sweep,wandb,dashboard]"

USER 1000
ENV ALTGRAD_RESULTS=/results PYTHONUNBUFFERED=1
VOLUME /results
EXPOSE 8501
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s CMD ["test", "-w", "/results"]
ENTRYPOINT ["altgrad"]
CMD ["sweep", "--results", "/results"]
