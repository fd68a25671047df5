"""One picture in: files, DICOM, archives, and what is wrong with a picture."""
