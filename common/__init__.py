"""Small things that trainers, datasets and scripts share and that belong to none of them."""
