package process

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The pause after a scan, as a multiple of its duration: scanning the sockets of 200 applications takes 6 ms.
const socketPauses = 5

// sockets is the last scan of all runs' sockets, shared by all questions that were asked before it began.
type sockets struct {
	mu    sync.Mutex // held during a scan
	began time.Time
	next  time.Time // earliest time of the next scan
	runs  map[uint64]string
}

// RunOfSocket returns the run of the process that has the socket with that inode, "" if there is none.
func (k *Keeper) RunOfSocket(inode uint64) string {
	asked := time.Now()
	s := &k.sockets
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began.After(asked) {
		time.Sleep(time.Until(s.next))
		s.began = time.Now()
		s.runs = k.runsOfSockets()
		s.next = time.Now().Add(socketPauses * time.Since(s.began))
	}
	return s.runs[inode]
}

func (k *Keeper) runsOfSockets() map[uint64]string {
	found := map[uint64]string{}
	for _, each := range k.belonging(k.below(nil)) {
		if each.owner == nil {
			continue
		}
		path := "/proc/" + strconv.Itoa(each.pid) + "/fd"
		directory, err := os.Open(path)
		if err != nil {
			continue
		}
		names, _ := directory.Readdirnames(-1)
		directory.Close()
		for _, name := range names {
			target, _ := os.Readlink(path + "/" + name)
			if text, is := strings.CutPrefix(target, "socket:["); is {
				if inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64); err == nil {
					found[inode] = each.owner.id()
				}
			}
		}
	}
	return found
}
