from fastrnn.backends import use_backend
