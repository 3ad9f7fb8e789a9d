//go:build !linux

package relay

import (
	"net/netip"
	"os"
)

// findPeer finds nobody here, so every user is let in.
func findPeer(_, _ netip.AddrPort) (peer, error) { return peer{uid: os.Getuid()}, nil }
