#!/usr/bin/env bash
source "$(dirname "$0")/../launching/launcher.sh"
