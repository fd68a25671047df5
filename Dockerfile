# The page on a CPU: docker build -t brain-tumor-mri . && docker run -p 7860:7860 brain-tumor-mri
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 GRADIO_SERVER_NAME=0.0.0.0 HF_HUB_OFFLINE=1

RUN useradd --create-home --uid 1000 reader
WORKDIR /home/reader/app

COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY brain_tumor_mri brain_tumor_mri
RUN pip install --constraint constraints.txt "/home/reader/app[page]"

COPY app.py ./
COPY examples examples
COPY model-lite model-lite

# a number, as Kubernetes asks for to know that it is not root
USER 1000
EXPOSE 7860
CMD ["python", "app.py"]
