package sim

import "testing"

// TestReadInFlightSeesLoss: a read in flight may return the zeroes that a device has after a loss, also if a write of
// zeroes in flight beside it fails without any effect; but not the data of such a write.
func TestReadInFlightSeesLoss(t *testing.T) {
	const old = 1 // the number of the first write
	for _, c := range []struct {
		name      string
		old, late bool   // the writes are of zeroes
		left      uint64 // the stamp of what the loss leaves
		legal     bool
	}{
		{"zeroes, beside a write of zeroes", true, true, 0, true},
		{"zeroes, beside a write of data", true, false, 0, true},
		{"data, beside a write of zeroes", false, true, old, true},
		{"data of the write that fails", true, false, 3, false},
	} {
		m := newModel(sectorSize)
		write := func(zero bool) {
			v := m.write(0, 1, zero)
			m.writeDone(0, 1, v, m.clock, false, false)
		}
		content := func(stamp uint64) []byte {
			p := make([]byte, sectorSize)
			fillSector(p, 0, stamp)
			return p
		}
		write(c.old)
		write(false)
		r := m.read(0, 1)
		late := m.write(0, 1, c.late)
		nothing := func(int) bool { return false }
		m.loses(nothing, content(2), content(c.left))
		m.writeUndone(0, 1, late)
		if err := m.readDone(r, content(c.left)); (err == nil) != c.legal {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestReadOfKeptDoesNotSeeLoss: a read of what the cache has had all the time may not return what the device has after
// a loss; one that was issued before the cache had it may, and so may one of what has been written since.
func TestReadOfKeptDoesNotSeeLoss(t *testing.T) {
	for _, had := range []bool{false, true} {
		for _, written := range []bool{false, true} {
			m := newModel(sectorSize)
			write := func() {
				v := m.write(0, 1, false)
				m.writeDone(0, 1, v, m.clock, false, false)
			}
			old, is := make([]byte, sectorSize), make([]byte, sectorSize)
			fillSector(is, 0, 1)
			write()
			r := m.read(0, 1)
			r.kept = []bool{had}
			if written {
				write()
			}
			m.loses(func(int) bool { return true }, is, old)
			if err := m.readDone(r, old); (err == nil) != (!had || written) {
				t.Errorf("the cache had it: %v, it was written: %v: %v", had, written, err)
			}
		}
	}
}
