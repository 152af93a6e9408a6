"""Imports every trainer and every data set, which registers them."""

import datasets.all
import trainers.cocoop
import trainers.coop
import trainers.dpl
import trainers.dpspg
import trainers.kgcoop
import trainers.linear_probe
import trainers.maple
import trainers.promptsrc
import trainers.spg
import trainers.vp
import trainers.vpt
import trainers.zsclip  # noqa: F401
from common.startup import check_utf8

check_utf8()
