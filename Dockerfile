# The page on a CPU: docker build -t brain-tumor-mri . && docker run -p 7860:7860 brain-tumor-mri
# TORCH_INDEX: address of an index of CPU builds of torch; without it the build is several GB larger.
FROM python:3.12-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 GRADIO_SERVER_NAME=0.0.0.0 HF_HUB_OFFLINE=1

RUN useradd --create-home reader
WORKDIR /home/reader/app

COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY brain_tumor_mri brain_tumor_mri
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" pip install .

COPY app.py ./
COPY examples examples
COPY model-lite model-lite

USER reader
EXPOSE 7860
CMD ["python", "app.py"]
