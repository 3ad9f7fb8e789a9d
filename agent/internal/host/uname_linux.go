package host

import "syscall"

// uname returns what `uname -s` and `uname -m` print.
func uname() (system, machine string) {
	var names syscall.Utsname
	if syscall.Uname(&names) != nil {
		return "Linux", ""
	}
	return text(names.Sysname[:]), text(names.Machine[:])
}

// text reads a C string, whose characters are signed on some processors.
func text[T int8 | uint8](characters []T) string {
	var read []byte
	for _, c := range characters {
		if c == 0 {
			break
		}
		read = append(read, byte(c))
	}
	return string(read)
}
