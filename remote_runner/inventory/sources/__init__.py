"""Hosts from elsewhere: what `hosts_from` of an inventory names, read into hosts as the inventory would list them."""
