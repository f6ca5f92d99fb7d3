#!/bin/sh
# `install -m MODE FROM TO`, which the tests use and busybox does not have.
cp "$3" "$4" && chmod "$2" "$4"
