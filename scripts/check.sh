#!/usr/bin/env bash
# The checks that CI runs, on your machine; --slow adds the slow tests.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../.ci/run" "$@"
