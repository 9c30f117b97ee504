//go:build vm

package ublk_test

// serverMain is the body of a server in a process of its own.
func serverMain(role string) { panic("unknown role " + role) }
