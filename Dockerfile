# docker build -t srcnn:0.2.0 .     What `make setup` does, as an image: the same editable install, with the extras for clusters.
# It runs as user 1000 and needs no writable root: see launch/k8s. torch.compile needs a compiler, which is not in it.
FROM python:3.11-slim-bookworm

RUN useradd --uid 1000 --create-home srcnn && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /srcnn
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
# Empty packages stand in for ours, so that the layer of gigabytes is made anew only when these files change.
RUN mkdir srcnn shards configs && touch srcnn/__init__.py shards/__init__.py \
    && python -m pip install --no-cache-dir --upgrade pip \
    && python -m pip install --no-cache-dir --editable '.[train,formats,remote,cluster,tensorboard,mlflow]'
COPY srcnn srcnn
COPY shards shards
COPY launch/train.py launch/pod.py launch/benchmark.py launch/
COPY configs configs
RUN python -m compileall -q srcnn shards launch
USER 1000:1000
CMD ["srcnn", "--help"]
