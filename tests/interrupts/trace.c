/* Makes a signal pending before a chosen bytecode of the code in a folder. The interpreter runs its
 * handler where it really would: at its own next look. */
#include <Python.h>
#include <frameobject.h>

static PyObject *folder;
static long chosen, seen;
static int signal_number;

static int is_ours(PyFrameObject *frame) {
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *file = PyObject_GetAttrString((PyObject *)code, "co_filename");
    int ours = file != NULL && PyUnicode_Tailmatch(file, folder, 0, PY_SSIZE_T_MAX, -1) == 1;
    Py_XDECREF(file);
    Py_DECREF(code);
    return ours;
}

static int trace(PyObject *self, PyFrameObject *frame, int what, PyObject *argument) {
    (void)self;
    (void)argument;
    if (what == PyTrace_CALL && is_ours(frame))
        return PyObject_SetAttrString((PyObject *)frame, "f_trace_opcodes", Py_True);
    if (what == PyTrace_OPCODE && seen++ == chosen)
        PyErr_SetInterruptEx(signal_number);
    return 0;
}

/* Counts bytecodes of code whose file's name begins with path; number at gets the signal. */
void interrupts_arm(PyObject *path, long at, int signum) {
    folder = path;
    chosen = at;
    seen = 0;
    signal_number = signum;
    PyEval_SetTrace(trace, NULL);
}

/* Returns how many there were. */
long interrupts_disarm(void) {
    PyEval_SetTrace(NULL, NULL);
    return seen;
}
