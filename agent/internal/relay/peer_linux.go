package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// The states (net/tcp_states.h) in which the peer's process may still send or receive.
func isLive(state uint64) bool {
	const established, finWait1, finWait2 = 1, 4, 5
	return state == established || state == finWait1 || state == finWait2
}

// findPeer returns who has the other end of a connection on this machine: that end's address is near, ours is far. The
// user is nobody if no process has it any more: a closed socket has no inode, and claims to be root's.
func findPeer(near, far netip.AddrPort) (peer, error) {
	near, far = plain(near), plain(far)
	if found, err := askKernel(near, far); err == nil {
		return found, nil
	}
	// A kernel without the module, or a container that may not ask, answers as if the socket did not exist.
	return askTables(near, far)
}

func askTables(near, far netip.AddrPort) (peer, error) {
	families := []string{"tcp", "tcp6"}
	if near.Addr().Is6() {
		families = families[1:]
	}
	for _, family := range families {
		found, err := readTable("/proc/net/"+family, near, far, family == "tcp6")
		if found.uid != nobody || err != nil && !errors.Is(err, os.ErrNotExist) {
			return found, err
		}
	}
	return noPeer, nil
}

func plain(address netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(address.Addr().Unmap().WithZone(""), address.Port())
}

// socketID, request and answer are those of linux/inet_diag.h.
type socketID struct {
	nearPort, farPort [2]byte
	near, far         [16]byte
	interfaceIndex    uint32
	cookie            [2]uint32
}

type request struct {
	header   syscall.NlMsghdr
	family   uint8
	protocol uint8
	extra    uint8
	_        uint8
	states   uint32
	socket   socketID
}

type answer struct {
	header                     syscall.NlMsghdr
	family, state, timer, retr uint8
	socket                     socketID
	expires, rqueue, wqueue    uint32
	uid, inode                 uint32
}

// askKernel looks up the socket by sock_diag(7). A v4 address also finds a v6 socket connected to it.
func askKernel(near, far netip.AddrPort) (peer, error) {
	const netlinkSockDiag, sockDiagByFamily = 4, 20
	socket, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return noPeer, err
	}
	defer syscall.Close(socket)
	_ = syscall.SetsockoptTimeval(socket, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 1})

	asked := request{family: syscall.AF_INET, protocol: syscall.IPPROTO_TCP, states: ^uint32(0)}
	if near.Addr().Is6() {
		asked.family = syscall.AF_INET6
	}
	asked.header = syscall.NlMsghdr{Len: uint32(unsafe.Sizeof(asked)), Type: sockDiagByFamily, Flags: syscall.NLM_F_REQUEST}
	copy(asked.socket.near[:], near.Addr().AsSlice())
	copy(asked.socket.far[:], far.Addr().AsSlice())
	binary.BigEndian.PutUint16(asked.socket.nearPort[:], near.Port())
	binary.BigEndian.PutUint16(asked.socket.farPort[:], far.Port())
	asked.socket.cookie = [2]uint32{^uint32(0), ^uint32(0)}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&asked)), unsafe.Sizeof(asked))
	if err := syscall.Sendto(socket, bytes, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return noPeer, err
	}
	var buffer [1024]byte
	size, _, err := syscall.Recvfrom(socket, buffer[:], 0)
	if err != nil {
		return noPeer, err
	}
	var said answer
	bytes = unsafe.Slice((*byte)(unsafe.Pointer(&said)), unsafe.Sizeof(said))
	if size < len(bytes) {
		return noPeer, errors.New("a short answer of sock_diag")
	}
	copy(bytes, buffer[:])
	if said.header.Type != sockDiagByFamily {
		return noPeer, errors.New("sock_diag knows no such socket")
	}
	if !isLive(uint64(said.state)) || said.inode == 0 {
		return noPeer, nil
	}
	return peer{int(said.uid), uint64(said.inode)}, nil
}

// readTable looks for the socket in /proc/net/tcp, or in tcp6, which has v4-mapped ones.
func readTable(path string, near, far netip.AddrPort, six bool) (peer, error) {
	file, err := os.Open(path)
	if err != nil {
		return noPeer, err
	}
	defer file.Close()
	ours := fmt.Sprintf(": %s %s ", inTable(near, six), inTable(far, six))
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		_, rest, found := strings.Cut(lines.Text(), ours)
		if !found {
			continue
		}
		// st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
		fields := strings.Fields(rest)
		if len(fields) < 7 {
			return noPeer, fmt.Errorf("%s: %q is no line of it", path, lines.Text())
		}
		state, _ := strconv.ParseUint(fields[0], 16, 8)
		uid, err := strconv.ParseUint(fields[4], 10, 32)
		inode, wrong := strconv.ParseUint(fields[6], 10, 64)
		if err == nil && wrong == nil && isLive(state) && inode != 0 {
			return peer{int(uid), inode}, nil
		}
	}
	return noPeer, lines.Err()
}

// inTable formats the address as the kernel does: hexadecimal words in the machine's byte order.
func inTable(address netip.AddrPort, six bool) string {
	bytes := address.Addr().AsSlice()
	if six {
		long := address.Addr().As16()
		bytes = long[:]
	}
	var text strings.Builder
	for ; len(bytes) > 0; bytes = bytes[4:] {
		fmt.Fprintf(&text, "%08X", binary.NativeEndian.Uint32(bytes))
	}
	return fmt.Sprintf("%s:%04X", text.String(), address.Port())
}
