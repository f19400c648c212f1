"""rocprofv3's files: its JSON (``rocprofiler-sdk-tool``) into the rows of an nsys export."""
