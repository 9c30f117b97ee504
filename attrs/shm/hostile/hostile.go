// Package hostile touches memory that belongs to somebody else, who may take it away at any time: an access then
// raises SIGBUS, which would be the end of the process.
package hostile

import (
	"errors"
	"runtime/debug"
)

// ErrFault: the memory is not there any more.
var ErrFault = errors.New("shared memory is gone")

// Guard makes an access to memory that is gone the error ErrFault. It is deferred as
//
//	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
//
// by the function that touches the memory, on the goroutine that does; was is the setting before.
func Guard(err *error, was bool) {
	debug.SetPanicOnFault(was)
	if p := recover(); p != nil {
		*err = Fault(p)
	}
}

// Always makes all faults of this goroutine panics from now on, for functions that are called for each request and do
// without the cost of Guard:
//
//	touching := true
//	defer func() {
//		if touching {
//			err = hostile.Fault(recover())
//		}
//	}()
//	… // and touching is false when it is done
func Always() { debug.SetPanicOnFault(true) }

// Fault is the error for what a function that touches the memory has panicked with. If it was no access to memory it panics
// again: it is a mistake.
func Fault(p any) error {
	if _, ok := p.(interface{ Addr() uintptr }); !ok {
		panic(p)
	}
	return ErrFault
}

// Copy copies src to dst, one of which may be gone.
func Copy(dst, src []byte) (err error) {
	defer Guard(&err, debug.SetPanicOnFault(true))
	copy(dst, src)
	return nil
}
