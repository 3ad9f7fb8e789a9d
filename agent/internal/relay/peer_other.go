//go:build !linux

package relay

import (
	"net/netip"
	"os"
)

// peerUser cannot be told here: everybody is let in.
func peerUser(_, _ netip.AddrPort) (uid int, err error) { return os.Getuid(), nil }
