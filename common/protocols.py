"""The names of what is trained on what, and tested where."""


def protocol_name(source_domains, target_domains):
    """ "multi-source", "single-source", or "in-domain" when the domains tested are those trained on."""
    if set(target_domains) <= set(source_domains):
        return "in-domain"
    return "single-source" if len(source_domains) == 1 else "multi-source"
