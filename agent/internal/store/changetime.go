//go:build !(darwin || freebsd || netbsd)

package store

import "syscall"

func changeTime(stat *syscall.Stat_t) int64 { return stat.Ctim.Nano() }
