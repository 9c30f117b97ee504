package blkbpf

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

const (
	diskNameBytes = 32 // of struct gendisk

	tracepoint = "block_rq_issue"

	// license is that of the program below, not of this package: the kernel lets only programs
	// under the GPL, or under others as well, look into its structures.
	license = "Dual MIT/GPL"
)

// Registers of the program. Those from R6 on survive calls.
const (
	regRequest = asm.R6
	regAll     = asm.R7 // whether the request is to be written down whatever it says; then …
	regSlot    = asm.R7
	regSaid    = asm.R8 // priority, and the write hint above it
	regCgroup  = asm.R9
)

// silent is in regAll of a request from which no attribute follows, and that nobody wants to see.
const silent = -1

// keyAt is where on the stack the key of a table is.
const keyAt = -8

// program assembles what runs at the tracepoint. queues and disks are the descriptors of the table of queues and of
// its directory, self is the process that serves the devices.
//
// Pointers into the kernel's structures are followed with plain loads, which the verifier checks
// against the types and the kernel makes safe: a load through a wrong pointer or NULL gives 0.
func (l *layout) program(queues, disks, self int) asm.Instructions {
	var p asm.Instructions
	p = append(p, l.findQueue(disks)...)
	p = append(p, l.lookAtBio()...)
	p = append(p, l.lookAtTask(self)...)
	p = append(p, judge()...)
	p = append(p, l.findSlot(queues)...)
	p = append(p, l.fillSlot(self)...)
	return append(p,
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
}

// findQueue leaves the request in its register, the queue's place in R0, and whether all of its requests are to be
// written down, or ends the program: see directory.
func (l *layout) findQueue(disks int) asm.Instructions {
	p := asm.Instructions{
		asm.LoadMem(regRequest, asm.R1, 0, asm.DWord), // the tracepoint's only argument
		asm.LoadMem(asm.R2, regRequest, l.rqQueue, asm.DWord),
		asm.LoadMem(asm.R2, asm.R2, l.queueDisk, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "out"),
		asm.LoadMem(asm.R3, asm.R2, l.diskName, asm.DWord),
		asm.LoadMem(asm.R4, asm.R2, l.diskName+8, asm.DWord),
		asm.LoadMem(asm.R5, regRequest, l.rqHctx, asm.DWord),
		asm.LoadMem(asm.R5, asm.R5, l.hctxNumber, asm.Word),

		asm.Mov.Reg(asm.R0, asm.R4), // key.home
		asm.Mul.Imm(asm.R0, homeFactor),
		asm.Xor.Reg(asm.R0, asm.R3),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.RSh.Imm(asm.R1, 32),
		asm.Xor.Reg(asm.R0, asm.R1),
		asm.Mul.Imm32(asm.R0, homeFactor),
		asm.RSh.Imm32(asm.R0, homeShift),
		asm.Mov.Reg(asm.R1, asm.R5),
		asm.Mul.Imm(asm.R1, queueStep),
		asm.Add.Reg(asm.R0, asm.R1),
		asm.And.Imm(asm.R0, 1<<directoryBits-1),

		asm.LoadMapValue(asm.R1, disks, 0),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Mul.Imm(asm.R2, entryBytes),
		asm.Add.Reg(asm.R1, asm.R2),
	}
	next := func(try int) string {
		if try == directoryTries {
			return "out"
		}
		return fmt.Sprintf("try-%d", try)
	}
	for try := range directoryTries {
		at := int16(try * entryBytes)
		first := asm.LoadMem(asm.R2, asm.R1, at+entryName, asm.DWord)
		if try > 0 {
			first = first.WithSymbol(next(try))
		}
		p = append(p,
			first,
			asm.JEq.Imm(asm.R2, emptyName, "out"),
			asm.JNE.Reg(asm.R2, asm.R3, next(try+1)),
			asm.LoadMem(asm.R2, asm.R1, at+entryRest, asm.DWord),
			asm.JNE.Reg(asm.R2, asm.R4, next(try+1)),
			asm.LoadMem(asm.R2, asm.R1, at+entryQueue, asm.DWord),
			asm.JNE.Reg(asm.R2, asm.R5, next(try+1)),
			asm.LoadMem(regAll, asm.R1, at+entryAll, asm.DWord),
			asm.Add.Imm(asm.R0, int32(try)),
			asm.Ja.Label("found"),
		)
	}
	return p
}

// lookAtBio takes priority, write hint and cgroup from the first bio. A flush has none.
func (l *layout) lookAtBio() asm.Instructions {
	p := asm.Instructions{
		asm.StoreMem(asm.RFP, keyAt, asm.R0, asm.Word).WithSymbol("found"),
		asm.LoadMem(asm.R2, regRequest, l.rqBio, asm.DWord),
		asm.Mov.Imm(regSaid, 0),
		asm.Mov.Imm(regCgroup, 0),
		asm.JEq.Imm(asm.R2, 0, "looked"),
		asm.LoadMem(regSaid, asm.R2, l.bioHint, asm.Byte),
		asm.LSh.Imm(regSaid, 16),
		asm.LoadMem(asm.R3, asm.R2, l.bioPrio, asm.Half),
		asm.Or.Reg(regSaid, asm.R3),
	}
	if l.hasBlkcg {
		p = append(p, follow(regCgroup, asm.R2,
			l.bioBlkg, l.blkgBlkcg, l.blkcgGroup, l.groupNode, l.nodeID)...)
	}
	return p
}

// lookAtTask takes the cgroup of the running task, which is the issuer or works for it, if the bio's is nobody's in
// particular. A kernel thread's says nothing, nor does the server's: what it issues are the kernel's reads for partitions
// when a device starts (so on 6.12; on 7.3 a kernel thread does that).
func (l *layout) lookAtTask(self int) asm.Instructions {
	if !l.hasCgroups {
		return nil
	}
	return append(asm.Instructions{
		asm.JGT.Imm(regCgroup, RootCgroup, "looked"),
		asm.FnGetCurrentTaskBtf.Call(),
		asm.LoadMem(asm.R3, asm.R0, l.taskFlags, asm.Word),
		asm.JSet.Imm(asm.R3, taskKernel, "looked"),
		asm.LoadMem(asm.R3, asm.R0, l.taskPID, asm.Word),
		asm.JEq.Imm(asm.R3, int32(self), "looked"),
	}, follow(regCgroup, asm.R0, l.taskCgroups, l.cssSetGroup, l.groupNode, l.nodeID)...)
}

// judge finds out whether the request is silent: the same as Event.Silent, but for hints on reads.
func judge() asm.Instructions {
	return asm.Instructions{
		asm.JNE.Imm(regAll, 0, "judged").WithSymbol("looked"),
		asm.JGT.Imm(regCgroup, RootCgroup, "judged"),
		asm.JEq.Imm(regSaid, 0, "silent"),
		asm.JNE.Imm(regSaid, plainIOPrio, "judged"),
		asm.Mov.Imm(regAll, silent).WithSymbol("silent"),
	}
}

// findSlot leaves the request's slot in its register, or ends the program. A silent request only empties it, should
// another one have been there that the server has not looked for: what nobody reads is not written, as the slot's cache
// line would go from CPU to CPU for nothing.
func (l *layout) findSlot(queues int) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, queues).WithSymbol("judged"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyAt),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),

		asm.Mov.Reg(asm.R1, asm.R0), // the queue's slots
		asm.LoadMem(asm.R2, regRequest, l.rqTag, asm.Word),
		asm.StoreMem(asm.RFP, keyAt, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyAt),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),

		asm.JNE.Imm(regAll, silent, "fill"),
		asm.LoadMem(asm.R1, asm.R0, slotFilled, asm.Byte),
		asm.JEq.Imm(asm.R1, 0, "out"),
		asm.StoreImm(asm.R0, slotFilled, 0, asm.Byte),
		asm.Ja.Label("out"),
		asm.Mov.Reg(regSlot, asm.R0).WithSymbol("fill"),
	}
}

// fillSlot writes the request down, with what there is to know of the running task. The server counts as a kernel thread.
func (l *layout) fillSlot(self int) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, regRequest, l.rqSector, asm.DWord),
		asm.StoreMem(regSlot, slotSector, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, regRequest, l.rqBytes, asm.Word),
		asm.StoreMem(regSlot, slotBlkLen, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, regRequest, l.rqFlags, asm.Word),
		asm.StoreMem(regSlot, slotFlags, asm.R2, asm.Word),
		asm.StoreMem(regSlot, slotSaid, regSaid, asm.Word),
		asm.StoreMem(regSlot, slotCgroup, regCgroup, asm.DWord),
		asm.FnGetCurrentTaskBtf.Call(),
		asm.LoadMem(asm.R3, asm.R0, l.taskFlags, asm.Word),
		asm.LoadMem(asm.R2, asm.R0, l.taskPID, asm.Word),
		asm.StoreMem(regSlot, slotPID, asm.R2, asm.Word),
		asm.JNE.Imm(asm.R2, int32(self), "not-self"),
		asm.Or.Imm(asm.R3, taskKernel),
		asm.StoreMem(regSlot, slotTask, asm.R3, asm.Word).WithSymbol("not-self"),
		asm.LoadMem(asm.R2, asm.R0, l.taskCred, asm.DWord),
		asm.LoadMem(asm.R2, asm.R2, l.credUID, asm.Word),
		asm.StoreMem(regSlot, slotUID, asm.R2, asm.Word),
		asm.StoreImm(regSlot, slotFilled, 1, asm.Byte),
	}
}

// follow loads from the first offset at src a pointer, from the next offset there another one, and
// so on, and leaves the last value, of 8 bytes, in dst: 0 if any of the pointers is NULL.
func follow(dst, src asm.Register, offsets ...int16) asm.Instructions {
	var p asm.Instructions
	for _, at := range offsets {
		p = append(p, asm.LoadMem(dst, src, at, asm.DWord))
		src = dst
	}
	return p
}
