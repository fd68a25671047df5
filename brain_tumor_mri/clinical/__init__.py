"""The model in the hospital's language: results as DICOM and FHIR, a queue on disk, a node beside the PACS."""
