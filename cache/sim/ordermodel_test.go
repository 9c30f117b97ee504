package sim

import "testing"

// TestOrderModelPromisesAgain: what is there after a loss that may have taken it, the next flush promises, of just that
// sector; a power cut takes the rest.
func TestOrderModelPromisesAgain(t *testing.T) {
	for _, cut := range []bool{false, true} {
		m := newModel(4 * sectorSize)
		m.order = newOrderModel(4)
		write := func(first, n int) version {
			v := m.write(first, n, false)
			m.writeDone(first, n, v, m.clock, false, false)
			return v
		}
		image := make([]byte, 4*sectorSize)
		show := func(i int, v version) { fillSector(image[i*sectorSize:], i, v.stamp) }
		old := write(0, 2) // sector 0 is kept, 1 is not
		if cut {
			m.powerCut()
			data := make([]byte, sectorSize)
			fillSector(data, 0, old.stamp)
			if err := m.readDone(m.read(0, 1), data); err != nil {
				t.Fatal(err)
			}
		} else {
			m.loses(func(i int) bool { return i == 0 }, image, image)
		}
		early := write(2, 1)
		m.flushDone(m.flush())
		show(2, early)
		if _, err := m.order.check(image); err != nil {
			t.Errorf("cut %v: what came before the flush needs nothing: %v", cut, err)
		}
		late := write(3, 1)
		show(3, late)
		if _, err := m.order.check(image); err == nil {
			t.Errorf("cut %v: what the flush has promised is missing, and the model is content", cut)
		}
		show(0, old)
		if _, err := m.order.check(image); err != nil {
			t.Errorf("cut %v: the other sector was not promised: %v", cut, err)
		}
	}
}
