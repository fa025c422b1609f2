"""Generated from the .proto files beside this one (`tests/test_proto.py` holds the command and checks that they agree)."""
