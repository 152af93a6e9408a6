"""Domain generalization datasets. Importing this package registers them with Dassl."""

from datasets import folder_dg, mini_digits, spg_domainnet, spg_officehome, spg_pacs, spg_terraincognita, spg_vlcs

__all__ = ["folder_dg", "mini_digits", "spg_domainnet", "spg_officehome", "spg_pacs", "spg_terraincognita", "spg_vlcs"]
