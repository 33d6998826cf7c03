"""Prints the stack of each move of the program break, as gdb sees it: `STOP`, then a `FRAME` for each."""
import gdb


def mappings(pid):
    found = []
    for line in open('/proc/%d/maps' % pid):
        fields = line.split(None, 5)
        start, end = [int(part, 16) for part in fields[0].split('-')]
        name = fields[5].strip() if len(fields) > 5 else ''
        if 'x' in fields[1]:
            found.append((start, end, int(fields[2], 16), name))
    return found


def place(found, address):
    for start, end, offset, name in found:
        if start <= address < end:
            return '%#x %s' % (address - start + offset, name)
    return None


def stack():
    found = mappings(gdb.selected_inferior().pid)
    frame, exact = gdb.newest_frame(), True
    while frame is not None:
        signal = frame.type() == gdb.SIGTRAMP_FRAME
        if frame.type() in (gdb.NORMAL_FRAME, gdb.SIGTRAMP_FRAME):
            here = place(found, frame.pc() if exact or signal else frame.pc() - 1)
            # Past the entry point of the dynamic linker, gdb goes on with what lies on the stack.
            if here is None:
                break
            print('FRAME', here)
            exact = signal
        try:
            frame = frame.older()
        except gdb.error as problem:
            print('PROBLEM', problem)
            break


for setting in ('pagination off', 'startup-with-shell off', 'backtrace past-main on', 'backtrace past-entry on',
                'backtrace limit 1000', 'disable-randomization on', 'debuginfod enabled off'):
    gdb.execute('set ' + setting)
for name in ('LINES', 'COLUMNS'):
    gdb.execute('unset environment ' + name)
gdb.execute('handle all nostop noprint pass')
gdb.execute('catch syscall brk')
gdb.execute('run')
inside, last = {}, None
while gdb.selected_thread() is not None:
    thread = gdb.selected_thread().ptid
    inside[thread] = not inside.get(thread, False)
    if not inside[thread]:
        now = int(gdb.parse_and_eval('(unsigned long)$rax'))
        if last is not None and now != last:
            print('STOP')
            stack()
        last = now
    gdb.execute('continue')
print('END')
