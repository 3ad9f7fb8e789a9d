package relay

import "net/netip"

// askers are both ways to ask.
var askers = []func(near, far netip.AddrPort) (peer, error){
	func(near, far netip.AddrPort) (peer, error) { return askKernel(plain(near), plain(far)) },
	func(near, far netip.AddrPort) (peer, error) { return askTables(plain(near), plain(far)) },
	findPeer,
}
