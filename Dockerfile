# Three images from one file: two that train and export, one that serves and holds no torch.
#   docker build --target cpu -t glora-deploy:cpu .
#   docker build --target gpu -t glora-deploy:gpu .
#   docker build --target server -t glora-deploy:server .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -v "$PWD/artifacts:/data/artifacts:ro" -p 127.0.0.1:8000:8000 glora-deploy:server
# Each step is one that also runs by hand in a clean environment.

FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY glora_deploy glora_deploy
COPY training training
COPY export export
COPY serving serving
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A numeric user, so that Kubernetes can see it is not root.
RUN groupadd --gid 1000 glora && useradd --uid 1000 --gid 1000 --create-home glora
COPY --from=wheel /wheels /wheels

FROM base AS cpu
# --build-arg PIP_EXTRA_INDEX_URL=... with PyTorch's index of CPU wheels makes this image several
# gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip install "$(ls /wheels/*.whl)[cpu,demo]" && rm -r /wheels
# Not the source folder: a folder named glora_deploy there would shadow the installed package.
WORKDIR /data
RUN chown 1000:1000 /data
USER 1000:1000
VOLUME /data
ENTRYPOINT ["python", "-m"]
CMD ["glora_deploy.export", "--help"]

FROM base AS gpu
RUN python -m pip install "$(ls /wheels/*.whl)[gpu,demo]" && rm -r /wheels
WORKDIR /data
RUN chown 1000:1000 /data
USER 1000:1000
VOLUME /data
ENTRYPOINT ["python", "-m"]
CMD ["glora_deploy.export", "--help"]

FROM base AS server
# Which packages a server needs stands in pyproject.toml; the installed metadata repeat it.
RUN python -m pip install --no-deps /wheels/*.whl && rm -r /wheels \
    && python -m glora_deploy.serving.requirements cpu s3 > /tmp/requirements.txt \
    && python -m pip install -r /tmp/requirements.txt && rm /tmp/requirements.txt
# Of the merge, which is compiled for the machine that it runs on: the root may be read-only.
ENV NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /data
USER 1000:1000
VOLUME /data
EXPOSE 8000 8001
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
ENTRYPOINT ["python", "-m", "glora_deploy.serving"]
CMD ["--host", "0.0.0.0", "--store", "/data/artifacts", "--grpc-port", "8001"]
