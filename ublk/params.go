package ublk

import (
	"math/bits"

	"ubcache/ublk/internal/sys"
)

func shift(v uint32) uint8 { return uint8(bits.TrailingZeros32(v)) }

// kernelParams spells p, whose defaults are filled in, for SET_PARAMS.
func kernelParams(p *Params, maxIOBytes uint32) sys.Params {
	k := sys.Params{Len: sys.ParamsSize, Types: sys.ParamBasic}
	k.Basic = sys.Basic{
		LogicalBSShift:  shift(p.LogicalBlockBytes),
		PhysicalBSShift: shift(p.PhysicalBlockBytes),
		IOMinShift:      shift(p.IOMinBytes),
		IOOptShift:      shift(p.IOOptBytes),
		MaxSectors:      maxIOBytes >> 9,
		ChunkSectors:    p.ChunkBytes >> 9,
		DevSectors:      p.SizeBytes >> 9,
		VirtBoundary:    p.VirtBoundaryMask,
	}
	for _, a := range []struct {
		on  bool
		bit uint32
	}{
		{p.ReadOnly, sys.AttrReadOnly},
		{p.Rotational, sys.AttrRotational},
		{p.VolatileCache, sys.AttrVolatileCache},
		{p.FUA, sys.AttrFUA},
	} {
		if a.on {
			k.Basic.Attrs |= a.bit
		}
	}
	if d := p.Discard; d != nil {
		k.Types |= sys.ParamDiscard
		k.Discard = sys.Discard{
			Alignment:             d.AlignmentBytes,
			Granularity:           d.GranularityBytes,
			MaxSectors:            uint32(d.MaxDiscardBytes >> 9),
			MaxWriteZeroesSectors: uint32(d.MaxZeroesBytes >> 9),
			MaxSegments:           1,
		}
	}
	if p.DMAAlign != 0 {
		k.Types |= sys.ParamDMAAlign
		k.DMA.Alignment = p.DMAAlign - 1
	}
	if s := p.Segment; s != nil {
		k.Types |= sys.ParamSegment
		k.Seg = sys.Segment{
			BoundaryMask: s.BoundaryMask, MaxSize: s.MaxBytes, MaxSegments: s.MaxCount,
		}
	}
	if i := p.Integrity; i != nil {
		k.Types |= sys.ParamIntegrity
		k.Integrity = sys.Integrity{
			Flags:        i.Flags,
			MaxSegments:  i.MaxSegments,
			IntervalExp:  shift(i.IntervalBytes),
			MetadataSize: i.MetadataBytes,
			PIOffset:     i.PIOffset,
			CsumType:     i.Checksum,
			TagSize:      i.TagSize,
		}
	}
	return k
}

// fromKernelParams is the inverse, for a device that somebody else made.
func fromKernelParams(k *sys.Params) Params {
	b := &k.Basic
	p := Params{
		SizeBytes:          b.DevSectors << 9,
		LogicalBlockBytes:  1 << b.LogicalBSShift,
		PhysicalBlockBytes: 1 << b.PhysicalBSShift,
		IOMinBytes:         1 << b.IOMinShift,
		IOOptBytes:         1 << b.IOOptShift,
		ChunkBytes:         b.ChunkSectors << 9,
		VirtBoundaryMask:   b.VirtBoundary,
		ReadOnly:           b.Attrs&sys.AttrReadOnly != 0,
		Rotational:         b.Attrs&sys.AttrRotational != 0,
		VolatileCache:      b.Attrs&sys.AttrVolatileCache != 0,
		FUA:                b.Attrs&sys.AttrFUA != 0,
	}
	if k.Types&sys.ParamDiscard != 0 {
		p.Discard = &DiscardParams{
			AlignmentBytes:   k.Discard.Alignment,
			GranularityBytes: k.Discard.Granularity,
			MaxDiscardBytes:  uint64(k.Discard.MaxSectors) << 9,
			MaxZeroesBytes:   uint64(k.Discard.MaxWriteZeroesSectors) << 9,
		}
	}
	if k.Types&sys.ParamDMAAlign != 0 {
		p.DMAAlign = k.DMA.Alignment + 1
	}
	if k.Types&sys.ParamSegment != 0 {
		p.Segment = &SegmentParams{
			BoundaryMask: k.Seg.BoundaryMask, MaxBytes: k.Seg.MaxSize, MaxCount: k.Seg.MaxSegments,
		}
	}
	if k.Types&sys.ParamIntegrity != 0 {
		i := &k.Integrity
		p.Integrity = &IntegrityParams{
			Flags: i.Flags, MaxSegments: i.MaxSegments, IntervalBytes: 1 << i.IntervalExp,
			MetadataBytes: i.MetadataSize, PIOffset: i.PIOffset, Checksum: i.CsumType,
			TagSize: i.TagSize,
		}
	}
	return p
}
