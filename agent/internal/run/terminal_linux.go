package run

import (
	"strconv"
	"syscall"
	"unsafe"
)

func pseudoTerminal() (ours, theirs int, err error) {
	return openBoth(func(ours int) (string, error) {
		var locked, number uint32
		if err := control(ours, syscall.TIOCSPTLCK, unsafe.Pointer(&locked)); err != nil {
			return "", err
		}
		err := control(ours, syscall.TIOCGPTN, unsafe.Pointer(&number))
		return "/dev/pts/" + strconv.Itoa(int(number)), err
	})
}
