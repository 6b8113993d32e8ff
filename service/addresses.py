"""Whose address a request has: its client's, where a proxy that is trusted hands it on."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# no more proxies stand one behind the other, and no more of a header is looked at
_MOST_HOPS = 16


def proxy_network(text: str) -> Network:
    """A proxy's address, or a network of proxies: `10.0.0.7`, `10.0.0.0/8`, `2001:db8::/32`.

    Raises ValueError for what is neither, and for all addresses at once, among which every client is.
    """
    found = ip_network(text)
    if isinstance(found, IPv6Network) and found.prefixlen >= 96:
        mapped = found.network_address.ipv4_mapped
        found = found if mapped is None else IPv4Network((mapped, found.prefixlen - 96))
    if found.prefixlen == 0:
        raise ValueError("A network of all addresses is no proxy's.")
    return found


def client_address(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str | None:
    """The address of the client of a request that came from `peer` with these lines of X-Forwarded-For.

    Each proxy adds the address that it was called from, at the right end. So what a trusted one says is believed, and
    whatever stands to the left of the first address that is none of theirs could be the client's own invention. Nothing is
    believed of another peer, and of a list that a trusted proxy can't have made.
    """
    if peer is None or not trusted or not forwarded:
        return peer
    client = peer
    try:
        if not _is_among(_address(peer), trusted):
            return peer
        # several lines are one list (RFC 9110 section 5.3); what is left of too many hops is no address
        for hop in reversed(",".join(forwarded).rsplit(",", _MOST_HOPS)):
            if not hop.strip():
                continue  # an empty element means nothing (RFC 9110 section 5.6.1)
            address = _address(_without_port(hop.strip()))
            client = str(address)
            if not _is_among(address, trusted):
                break
    except ValueError:
        return peer
    return client


def client_network(address: str | None) -> str:
    """Whom wrong keys from `address` are counted against: an IPv4 address, or the /64 that an IPv6 caller has to himself."""
    if address is None or ":" not in address:
        return address or ""
    found = _address(address)
    return str(found if isinstance(found, IPv4Address) else ip_network((found, 64), strict=False))


def _address(text: str) -> Address:
    """Raises ValueError for what is none. An IPv4 address in IPv6's clothes is the same client's as without."""
    found = ip_address(text.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _is_among(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _without_port(hop: str) -> str:
    """Some proxies add the port: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    if hop.startswith("["):
        host, bracket, port = hop[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            raise ValueError("A bracket is not closed, or something else than a port follows it.")
        return host
    if hop.count(":") == 1:
        host, _, _ = hop.partition(":")
        if not _is_port(hop.removeprefix(host)):
            raise ValueError("This is no port.")
        return host
    return hop


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdecimal()
