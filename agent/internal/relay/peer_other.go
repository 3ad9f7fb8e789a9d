//go:build !linux

package relay

import (
	"net/netip"
	"os"
)

// findPeer cannot tell here: everybody is let in.
func findPeer(_, _ netip.AddrPort) (peer, error) { return peer{uid: os.Getuid()}, nil }
