package run

import (
	"bytes"
	"syscall"
	"unsafe"
)

func pseudoTerminal() (ours, theirs int, err error) {
	return openBoth(func(ours int) (string, error) {
		var name [128]byte // as TIOCPTYGNAME says
		if err := control(ours, syscall.TIOCPTYGRANT, nil); err != nil {
			return "", err
		}
		if err := control(ours, syscall.TIOCPTYUNLK, nil); err != nil {
			return "", err
		}
		err := control(ours, syscall.TIOCPTYGNAME, unsafe.Pointer(&name))
		text, _, _ := bytes.Cut(name[:], []byte{0})
		return string(text), err
	})
}
