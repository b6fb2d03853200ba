# The image of jobs/rayjob.yaml: krscale and Ray, pinned by constraints.txt.
#
#   docker build -t krscale:0.1.0 .
#   docker run --rm --shm-size=2g -v krscale-runs:/storage krscale:0.1.0 krscale tune jobs/digits.toml
#
# A named volume belongs to the user of the image; a folder of the host (-v "$PWD/runs:/storage") must
# exist before, writable by user 1000.
#
# The settings of pip choose the package index and the build of torch, for CPUs or for
# CUDA: --build-arg PIP_INDEX_URL=... or --build-arg PIP_EXTRA_INDEX_URL=...
# tests/test_dockerfile.py runs the pip steps in a fresh environment (make drills); it builds no image.
FROM python:3.11-slim

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

# KubeRay's probes call bash and wget.
RUN apt-get update && apt-get install -y --no-install-recommends bash wget && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY constraints.txt ./
# The largest package has its own layer, so that a change of the code does not install it again.
RUN pip install --no-cache-dir --constraint constraints.txt torch
# The build backend is pinned like the rest; without isolation, pip installs nothing outside the pins.
RUN pip install --no-cache-dir --constraint constraints.txt hatchling

COPY pyproject.toml README.md LICENSE ./
COPY search_spaces ./search_spaces
COPY jobs ./jobs
COPY krscale ./krscale
RUN pip install --no-cache-dir --no-build-isolation --constraint constraints.txt '.[search,export]'

# Without the sources here, Python imports the installed package.
RUN useradd --create-home --uid 1000 krscale && mkdir /storage && chown krscale /storage && rm -rf /build
USER krscale
WORKDIR /home/krscale
ENV KRSCALE_STORAGE_PATH=/storage
CMD ["krscale", "--help"]
