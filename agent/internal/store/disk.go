package store

import (
	"io/fs"
	"syscall"
)

// diskSize returns a file's size on disk.
func diskSize(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(stat.Blocks) * 512
	}
	return info.Size()
}
