# hgt-infer serve in a container. Two targets:
#   docker build --target cpu  -t hgt_infer:cpu .
#   docker build --target cuda -t hgt_infer:cuda .
# docs/embedding.md says how to run them.

FROM python:3.11-slim-bookworm AS source
WORKDIR /source
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY hgt_infer hgt_infer
RUN python -m venv /opt/hgt_infer
ENV PATH=/opt/hgt_infer/bin:$PATH

FROM source AS build-cpu
# onnxruntime-gpu runs on a CPU too, with 0.4 GB of CUDA providers that it does not need there.
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve]' \
    && version="$(python -c 'import onnxruntime; print(onnxruntime.__version__)')" \
    && pip uninstall --yes onnxruntime-gpu \
    && pip install --no-cache-dir --no-deps "onnxruntime==${version}"

FROM source AS build-cuda
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve,cuda]'

FROM python:3.11-slim-bookworm AS run
RUN useradd --system --uid 10001 --no-create-home hgt_infer \
    && install --directory --owner hgt_infer /models /cache
# Nothing but /cache is written: the rest may be read-only. It is needed for hub ids and checkpoints alone.
ENV PATH=/opt/hgt_infer/bin:$PATH HGT_INFER_CACHE=/cache HF_HOME=/cache/huggingface PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["hgt-infer"]
CMD ["serve", "model=/models/model", "--host", "0.0.0.0"]

FROM run AS cuda
COPY --from=build-cuda /opt/hgt_infer /opt/hgt_infer

# The last one is what a build without --target makes.
FROM run AS cpu
COPY --from=build-cpu /opt/hgt_infer /opt/hgt_infer
