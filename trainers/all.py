"""Imports every trainer and every data set, which registers them."""

import datasets.all
import trainers.cocoop
import trainers.coop
import trainers.linear_probe
import trainers.spg
import trainers.zsclip  # noqa: F401
