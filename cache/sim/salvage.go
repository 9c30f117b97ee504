package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"ubcache/cache"
)

// After some crashes the simulator does what an operator does who gives the SSD up: it puts what cache.Salvage finds over a
// copy of each backing device, which then has to be a legal content of the cached one. Only what the SSD cannot return may
// differ.

// salvage looks at what could be saved after a crash. If part of the journal is damaged, that is only what is found and is
// certain.
func (s *Sim) salvage(damaged bool) {
	const every = 4 // it costs as much as a start
	if (s.cfg.Seed+uint64(s.res.Crashes))%every != 0 || s.err != nil {
		return
	}
	v, err := s.openSalvage()
	if err != nil {
		s.fail(fmt.Errorf("salvage: %w", err))
		return
	}
	defer v.Close()
	for i, id := range s.ids {
		if id == noID {
			continue
		}
		if err := s.salvageDevice(v, i, damaged); err != nil {
			s.fail(fmt.Errorf("salvage of device %d: %w", id, err))
			return
		}
	}
	s.res.Salvaged++
}

// openSalvage loads the cache, which must not change it.
func (s *Sim) openSalvage() (*cache.Salvage, error) {
	hook := s.ssd.hook
	defer func() { s.ssd.hook = hook }()
	s.ssd.hook = func(kind cache.OpKind, _, _ int64) error {
		if kind == cache.OpRead {
			return nil
		}
		return errors.New("a salvage changes the SSD")
	}
	ring := bytes.Clone(s.ring)
	v, err := cache.OpenSalvage(context.Background(), s.ssd, s.ring, nil)
	if err == nil && !bytes.Equal(ring, s.ring) {
		v.Close()
		return nil, errors.New("it changes the pending ring")
	}
	return v, err
}

func (s *Sim) salvageDevice(v *cache.Salvage, dev int, damaged bool) error {
	image, m := bytes.Clone(s.backs[dev].now), s.models[dev]
	known := make([]bool, len(m.sectors))
	for i := range known {
		known[i] = !damaged
	}
	faults := s.ssdFaults() || s.van.lost
	err := v.Walk(context.Background(), s.ids[dev], func(b *cache.SalvageBlock) error {
		s.res.SalvagedBlocks++
		if b.Certainty == cache.Uncertain && !damaged && (s.cfg.Checksums || !faults) || b.Certainty == cache.Unreadable && !faults {
			return fmt.Errorf("the block at %d is %v, and nothing has failed", b.Off, b.Certainty)
		}
		for i := range len(b.Data) / sectorSize {
			at := b.Off + int64(i)*sectorSize
			sector := int(at / sectorSize)
			if b.Sectors>>i&1 != 0 {
				known[sector] = b.Certainty < cache.Uncertain
				copy(image[at:], b.Data[i*sectorSize:][:sectorSize])
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if s.van.doubted>>s.ids[dev]&1 != 0 {
		return nil
	}
	for i := range m.sectors {
		sure := known[i] && !s.van.bad[dev][i/blockSectors]
		if p := image[i*sectorSize:]; sure && !m.sectors[i].legal.matches(p, i) {
			return fmt.Errorf("sector %d is of version %d, legal are %v (durable %v)", i, binary.LittleEndian.Uint64(p),
				m.sectors[i].legal, m.sectors[i].durable)
		}
	}
	return nil
}
