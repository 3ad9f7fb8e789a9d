"""Hosts from elsewhere: reads what `hosts_from` names into hosts as the inventory would list them."""
