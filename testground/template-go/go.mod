// The program that fills in compositions: a module of its own, for it alone needs more than the standard library.
module remote-runner/template

go 1.21

// The version that Testground v0.6.0 has: what its templates say in TOML stays the same.
require github.com/BurntSushi/toml v0.4.1
