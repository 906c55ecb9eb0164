"""Numbers: floats in, codes, scales and bytes out. numpy and the C library only; nothing here knows files or graphs."""
