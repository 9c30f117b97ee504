//go:build vm

package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"ubcache/internal/faulttable"
)

// faultsFile is where the rows are, below [Out]; the host prints them (ubvm faults).
const faultsFile = "faults.jsonl"

// Tally counts, for one row of the table of faults, how often a fault was tried and what it did.
type Tally struct {
	t                   testing.TB
	times               atomic.Int64
	lost, wrong, errors atomic.Int64
}

// Fault begins a row; it is noted at the end of the test, and that the test has failed if it has.
func Fault(t testing.TB, name string) *Tally {
	t.Helper()
	y := &Tally{t: t}
	t.Cleanup(func() {
		row := faulttable.Row{
			Fault: name, Place: os.Getenv("UBVM_KERNEL"), Times: y.times.Load(), Lost: y.lost.Load(),
			Wrong: y.wrong.Load(), Errors: y.errors.Load(), Failed: t.Failed(),
		}
		if err := faulttable.Append(filepath.Join(os.Getenv("UBVM_OUT"), faultsFile), row); err != nil {
			t.Error(err)
		}
	})
	return y
}

// Tried says that the fault has been tried n times more.
func (y *Tally) Tried(n int) { y.times.Add(int64(n)) }

// reports bounds what is printed of each kind.
const reports = 10

// Lost fails the test because acknowledged data is an older version.
func (y *Tally) Lost(format string, args ...any) { y.note(&y.lost, "data lost: "+format, args) }

// Wrong fails the test because of data that was never written there.
func (y *Tally) Wrong(format string, args ...any) { y.note(&y.wrong, "wrong data: "+format, args) }

// Failed fails the test because of an I/O error that should not be.
func (y *Tally) Failed(format string, args ...any) { y.note(&y.errors, "I/O error: "+format, args) }

// Load notes an error of a program that verifies what it writes.
func (y *Tally) Load(err error) {
	y.t.Helper()
	if strings.Contains(err.Error(), "verify") || strings.Contains(err.Error(), errProbe) {
		y.Wrong("%v", err)
		return
	}
	y.Failed("%v", err)
}

// errProbe is what a probe says that reads back something else than it wrote.
const errProbe = "something else than was written"

func (y *Tally) note(count *atomic.Int64, format string, args []any) {
	y.t.Helper()
	if n := count.Add(1); n <= reports {
		y.t.Errorf(format, args...)
	} else {
		y.t.Fail()
	}
}
