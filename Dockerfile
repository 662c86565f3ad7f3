# The commands of the package, without a display or a compiler. Weights and MANO are mounted, never in a layer:
#
#   docker build --tag interwild .
#   docker run --rm --user "$(id -u)" --volume "$HOME/.local/share/interwild:/weights:ro" --volume "$PWD:/photos" \
#       interwild interwild-demo --gpu cpu --input photo.jpg
#
# For CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, and docker run --gpus all.

FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(echo /wheel/*.whl)[web,video]"
RUN useradd --create-home user
USER user
ENV INTERWILD_HOME=/weights
WORKDIR /photos
CMD ["interwild-demo", "--help"]
