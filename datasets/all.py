"""Imports every data set, which registers them."""

import datasets.folder_dg
import datasets.mini_digits
import datasets.spg_domainnet
import datasets.spg_officehome
import datasets.spg_pacs
import datasets.spg_terraincognita
import datasets.spg_vlcs  # noqa: F401
